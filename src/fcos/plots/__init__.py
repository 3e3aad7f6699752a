"""Pictures for people. Read `boxes` (on a photograph), `curves` (of trainings), `report` (all of it)."""
