"""What people look at: the table of runs, findings in their answers, plots and pages."""
