"""A client for OCI registries (distribution-spec v1.1): reading, pushing, resuming, mounting, referrers.

Own code, since no Python library pushes an index, resumes an upload or keeps a model out of memory.
"""
