"""The functions with which notebooks show records: tables, figures, the leaderboard, speed."""
