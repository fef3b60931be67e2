"""Reports: one page that needs no network (molecules need the extra ``chem``)."""
