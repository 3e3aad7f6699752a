"""Pictures for people: `boxes` (on a photograph), then `curves` (of trainings), then `report` (all in one page)."""
