collect_ignore_glob = ["*.py"]  # of a notebook, nbmake runs the .ipynb; its text is no test module
