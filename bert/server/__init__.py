"""The HTTP server over a predictor, with a page to type into."""
