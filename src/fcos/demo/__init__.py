"""Detection over HTTP: `fcos demo` (a web page) and `fcos serve` (a service for programs).

Read `endpoint.py` first (`POST /predict`, which both have), then `batching.py` (concurrent requests),
`server.py` (the demo; its page is `page.html`, `page.css` and `page.js`) and `service.py` with `metrics.py`;
finally their protection: `body.py`, `guard.py` and `connections.py`.
"""
