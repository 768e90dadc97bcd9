"""The report: one interactive HTML page of a folder's traces and step maps."""
