"""The explorer: sliders on a network's description, its theory drawn as they move, simulated on request.

One state, frozen, is everything that is chosen: an address, a `Model`, Python code and a command line are made of it
(`state`, `words`). `curves` are pure functions of it, `kept` remembers them, `latest` runs them behind the page, the
newest wish first; `job` simulates in processes of its own. `plots`, `controls` and `page` are what is seen, and need
Panel: the extra [explore]. `server` answers this machine alone (`strangers`), `notebook` shows the page in a notebook.
"""
