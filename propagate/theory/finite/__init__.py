"""Networks of finite width: their bias, their spread, and what a comparison must allow for."""
