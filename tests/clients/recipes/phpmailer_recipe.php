<?php
// Runs the block for PHPMailer of docs/clients.md: php phpmailer_recipe.php SUBJECT BLOCK
require getenv('PHPMAILER') ?: 'libphp-phpmailer/autoload.php';

use PHPMailer\PHPMailer\PHPMailer;

eval('use PHPMailer\PHPMailer\PHPMailer;' . file_get_contents($argv[2]));
try {
    $mail->setFrom('you@example.com');
    $mail->addAddress('to@x.example');
    $mail->Subject = $argv[1];
    $mail->Body = 'Hello';
    $mail->send();
} catch (Exception $error) {
    fwrite(STDERR, $error->getMessage());
    exit(1);
}
