"""Looking inside a trained network: each analysis is a function that writes a page, pictures and numbers."""
