"""Image classifiers: their data, the embedded digits model, any transformers classifier, and the Task made of them."""
