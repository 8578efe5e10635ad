"""What the tests share: files of each kind, analytic networks, a browser, runs that are killed."""
