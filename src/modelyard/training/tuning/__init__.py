"""Search: trials over the fields of a project; each trial is a resumable run like any other."""
