"""Pictures, pages and warnings from what a run left."""
