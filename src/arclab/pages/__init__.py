"""All pages and sheets that people look at: report, comparison, queue."""
