"""The demo page: `server.py` answers, `page.html`, `page.css` and `page.js` are what the browser shows."""
