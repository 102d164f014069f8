"""The OCI image model: digests, references, layers, images, indexes, layouts, and their checker."""
