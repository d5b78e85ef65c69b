"""A served model: a page and a JSON API on one machine, built on fundax.load.

answers.py asks the model, calibration.py and neighbours.py say how far to trust an answer, web.py is the server."""
