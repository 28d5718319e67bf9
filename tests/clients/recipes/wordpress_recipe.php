<?php
// Runs the block for WordPress of docs/clients.md with the WordPress that is installed in the folder WORDPRESS:
// php wordpress_recipe.php SUBJECT BLOCK
$_SERVER['HTTP_HOST'] = 'localhost';
require getenv('WORDPRESS') . '/wp-load.php';
require $argv[2];
add_action('wp_mail_failed', fn ($error) => fwrite(STDERR, $error->get_error_message()));
exit(wp_mail('to@x.example', $argv[1], 'Hello') ? 0 : 1);
