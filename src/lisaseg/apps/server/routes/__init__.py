"""What each path does, one file a group. Every function is short: read the request, ask a part, shape the response."""
