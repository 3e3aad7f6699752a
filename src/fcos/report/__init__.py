"""Pages and images for people: `page` (a run), `comparison` (two runs), `curves`, and their `templates/`."""
