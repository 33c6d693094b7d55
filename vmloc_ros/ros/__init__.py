"""The only place that imports rclpy and message packages: convert, call, publish."""
