"""Games over coalitions and how to score their players: one library for words, documents and whatever comes next."""
