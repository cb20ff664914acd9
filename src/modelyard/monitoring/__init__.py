"""Monitoring: scrape configuration and dashboards written for each deployment."""
