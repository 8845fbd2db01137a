"""`segue bench`: MLPerf's scenarios over any engine, their record, its table and plot. `command` runs it."""
