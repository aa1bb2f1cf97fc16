"""All that knows a configuration and a work directory."""
