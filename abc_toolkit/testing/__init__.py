"""Contract tests, which a user's own task or position method can inherit."""
