"""Reports: `page` writes report.html from `templates/`, `curves` the training curves.

`tables`, `chart`, `analysis_charts`, `gallery`, `examples`, `assignment`, `coverage` and `second_look`
provide the contents of the page; `comparison` writes the page that compares two runs, `finished_run` reads a
run from its folder, `after_training` writes page and curves for a new run.
"""
