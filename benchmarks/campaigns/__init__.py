"""What the service withstands: one file a campaign, each with figures and bounds."""
