"""Pictures for people: `boxes` (on a photograph), `curves` (of trainings), `report` (all; `templates/`)."""
