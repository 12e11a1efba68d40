"""Which heads obey emphasis: margins of head sets, the search over them, its record, and the profile it ends in."""
