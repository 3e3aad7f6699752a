"""Reports: `page` writes report.html from `templates/`, `curves` the training curves.

`tables`, `chart`, `analysis_charts`, `gallery`, `examples`, `assignment`, `coverage`, `second_look` fill the
page; `comparison` is the page of two runs, `finished_run` reads a run from its folder, `after_training`
writes page and curves for a new one.
"""
