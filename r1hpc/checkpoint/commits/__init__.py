"""Parts of a commit: names, the record that makes it one, who writes, what is kept. Loads no torch."""
