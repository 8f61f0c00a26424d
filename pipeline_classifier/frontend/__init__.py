"""From samples to pages: cleaning, dedispersion, cutting."""
