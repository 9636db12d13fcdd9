"""One proposition a file. Each module defines `PROPOSITION`."""
