"""What notebooks call to show records: tables, figures, the leaderboard, speed."""
