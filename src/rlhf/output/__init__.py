"""What is shown: the terminal, tables, plots."""
