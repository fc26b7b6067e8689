"""Templates, plots and number formats that all pages share."""
