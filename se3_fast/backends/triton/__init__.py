"""Backend ``triton``: from plans and graphs to kernel launches. Imported only where that backend runs."""
