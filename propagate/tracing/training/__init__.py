"""Training: arms of rates and seeds, each a plain loop over a corpus, watched by the same code as `trace`."""
