"""Reports: tables of runs, analysis of predictions, plots and HTML pages."""
