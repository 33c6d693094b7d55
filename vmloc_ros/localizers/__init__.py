"""Every kind of model as the pipeline sees it."""
