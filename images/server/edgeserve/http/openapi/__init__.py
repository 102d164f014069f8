"""The HTTP interface as an OpenAPI 3.1 document: made of the tables that requests are checked with, and only when somebody asks."""
