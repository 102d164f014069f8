"""The inference server inside an edgebuild image: OpenAI's HTTP interface over llama.cpp, bounded and private."""

__version__ = "0.1.0"
