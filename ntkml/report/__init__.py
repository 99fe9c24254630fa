"""One page that shows everything a results folder holds: figures, tables, runs and where each number comes from."""
