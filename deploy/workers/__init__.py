"""Where workers live: in processes on Ray, or inline in this one."""
