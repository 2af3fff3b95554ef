"""What a run's tables show: tables, figures, the report, the published numbers and the notebooks."""
