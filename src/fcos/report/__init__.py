"""Reports: `page` writes report.html from `templates/`, `curves` the training curves.

`tables`, `chart`, `analysis_charts`, `gallery`, `examples`, `assignment`, `coverage`, `second_look` fill the
page; `comparison` is the page of two runs, `run_folder` reads a finished run, `after_training` writes page
and curves for a new one.
"""
