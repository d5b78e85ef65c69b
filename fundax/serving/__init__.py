"""Serve a model as a web page and a JSON API on one machine.

answers.py asks the model, calibration.py and neighbours.py say how far to trust an answer, web.py is the server."""
