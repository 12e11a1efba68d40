"""A variant of a class that is there already: its options, set to what makes it."""

import amplify
from amplify.methods import FewShot, Preset

longest = Preset(FewShot, "The longest examples as shots.", fixed={"selection": "longest"}, without=("mark",))
amplify.register("method", "few_shot_longest", longest)
