"""The HTTP interface: OpenAI's requests and answers over the scheduler."""
